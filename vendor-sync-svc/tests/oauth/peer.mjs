// A vendor with OAuth: npm's oauth2-mock-server, taught to rotate refresh tokens as strict vendors do, and beside it the
// vendor's own API, which takes the tokens that were granted.
//
// Prints one line of JSON with the addresses of both, and ends with its standard input.
// GET /me asks who one is; POST /mode changes how tokens are granted; GET /seen tells what was asked for.

import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const modules = process.env.WEDSYNC_TEST_NODE_MODULES;
const { OAuth2Server } = await import(pathToFileURL(`${modules}/oauth2-mock-server/dist/index.mjs`));

const mode = { expires_in: 3600, error: '', status: 0, rotates: true, forgives: false };
const seen = { grants: [], verifiers: 0, basic: 0, revoked: [] };
const refreshable = new Set();
const good = new Set();

function refuse(response, status, error) {
  response.statusCode = status;
  response.body = { error, error_description: 'as the test wished' };
}

function grant(response, request) {
  const asked = request.body;
  seen.grants.push(asked.grant_type);
  if (asked.code_verifier) seen.verifiers += 1;
  if (request.headers.authorization?.startsWith('Basic ')) seen.basic += 1;
  if (mode.error) return refuse(response, mode.status, mode.error);
  if (asked.grant_type === 'refresh_token') {
    if (!refreshable.has(asked.refresh_token)) return refuse(response, 400, 'invalid_grant');
    if (mode.rotates && !mode.forgives) refreshable.delete(asked.refresh_token);
    if (!mode.rotates) delete response.body.refresh_token;
  }
  if (response.body.refresh_token) refreshable.add(response.body.refresh_token);
  // Two of the same second would be the same.
  response.body.access_token += `.${randomUUID()}`;
  response.body.expires_in = mode.expires_in;
  good.add(response.body.access_token);
}

const server = new OAuth2Server();
await server.issuer.keys.generate('RS256');
server.service.on('beforeResponse', grant);
server.service.on('beforeRevoke', (_, request) => {
  let body = '';
  request.on('data', (part) => (body += part));
  request.on('end', () => seen.revoked.push(new URLSearchParams(body).get('token')));
});
await server.start(0, '127.0.0.1');

const api = createServer((request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(JSON.stringify(body));
  };
  if (request.url === '/seen') return answer(200, seen);
  if (request.url === '/me') {
    const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
    return good.has(token) ? answer(200, { dc: 'us7' }) : answer(401, { title: 'who are you?' });
  }
  let body = '';
  request.on('data', (part) => (body += part));
  request.on('end', () => {
    Object.assign(mode, JSON.parse(body));
    answer(200, mode);
  });
});
api.listen(0, '127.0.0.1', () => {
  const oauth = `http://127.0.0.1:${server.address().port}`;
  console.log(JSON.stringify({ oauth, api: `http://127.0.0.1:${api.address().port}` }));
});
process.stdin.on('end', () => process.exit(0)).resume();
