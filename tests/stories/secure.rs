//! WedSync's own database behind TLS: a real server that takes nothing else, and everything that can be wrong with a
//! certificate, said to who connects it.

use std::{fs, path::Path};

use proto::vendorsync::v1::{
    ConnectIntegrationRequest, GivenCredential, Integration, IntegrationKind, TestIntegrationRequest,
    TestIntegrationResponse, given_credential::Credential,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use tonic::{Code, Status};
use vendor_sync_svc::testing::vendor::{
    Server,
    profile::{Profile, Receiver},
};

use super::{
    inbound::create_integration,
    linked::{KEY, link, taken},
    story::{Tenant, eventually, now, updated},
};
use crate::harness::{Engine, Postgres, Wedsync, organization, provided, run, text};

const TABLE: &str = "CREATE TABLE wedding_details (id text PRIMARY KEY, organization_id text, wedding_date date, updated_at timestamptz)";

/// A PostgreSQL server that takes TLS alone, and who signed its certificate, which is for 127.0.0.1.
struct Secure {
    server: Postgres,
    /// What it was signed by, and what it wasn't.
    authority: String,
    stranger: String,
    _folder: TempDir,
}

impl Secure {
    /// None, and a word about it, where there is no PostgreSQL.
    async fn start() -> Option<Self> {
        provided("WEDSYNC_TEST_POSTGRES")?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let (authority, stranger) = (authority(folder.path(), "ours").await, authority(folder.path(), "strange").await);
        let (key, request, certificate) = (path("server.key"), path("server.csr"), path("server.pem"));
        openssl(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=db",
            "-keyout",
            text(&key),
            "-out",
            text(&request),
        ])
        .await;
        let names = path("names");
        fs::write(&names, "subjectAltName=IP:127.0.0.1\n").expect("written");
        let (signer, signers_key) = (path("ours.pem"), path("ours.key"));
        openssl(&[
            "x509",
            "-req",
            "-in",
            text(&request),
            "-CA",
            text(&signer),
            "-CAkey",
            text(&signers_key),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            text(&names),
            "-out",
            text(&certificate),
        ])
        .await;
        run("chmod", &["600", text(&key)]).await.expect("ours");
        // Who runs the server must own it.
        let _ = run("chown", &["postgres", text(&key), text(&certificate)]).await;
        let settings = [
            "ssl=on".to_owned(),
            format!("ssl_key_file={}", key.display()),
            format!("ssl_cert_file={}", certificate.display()),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let server = Postgres::start_in(folder.path(), &settings).await;
        let mut connection = PgConnection::connect(&server.url()).await.expect("it answers");
        fs::write(path("data").join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n").expect("written");
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut connection).await.expect("it reads its rules anew");
        sqlx::raw_sql(TABLE).execute(&mut connection).await.expect("a table");
        Some(Self { server, authority, stranger, _folder: folder })
    }

    fn url(&self, host: &str, mode: &str) -> String {
        format!("{}?sslmode={mode}", self.server.url().replace("127.0.0.1", host))
    }

    async fn run(&self, sql: &str) -> String {
        let mut connection = PgConnection::connect(&self.url("127.0.0.1", "require")).await.expect("it answers");
        let row: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(&mut connection).await.expect(sql);
        row.unwrap_or_default()
    }
}

async fn openssl(arguments: &[&str]) {
    run("openssl", arguments).await.expect("the package openssl is there");
}

/// Makes one that signs; gives its certificate.
async fn authority(folder: &Path, name: &str) -> String {
    let (key, certificate) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pem")));
    let subject = format!("/CN={name}");
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &subject,
        "-keyout",
        text(&key),
        "-out",
        text(&certificate),
    ])
    .await;
    fs::read_to_string(certificate).expect("it was made")
}

async fn integration(tenant: &Tenant, authority: &str) -> Result<Integration, Status> {
    let parameters = [("ca".to_owned(), authority.to_owned())].into();
    let kind = IntegrationKind::Connector.into();
    let asked = Integration { kind, connector: "database".to_owned(), parameters, ..Integration::default() };
    create_integration(tenant, asked, "").await.map(|(integration, _)| integration)
}

async fn connect(tenant: &Tenant, integration: &Integration, url: &str) -> Result<(), Status> {
    let credential = Some(GivenCredential { credential: Some(Credential::ApiKey(url.to_owned())) });
    let request = ConnectIntegrationRequest { id: integration.id.clone(), credential };
    tenant.integrations().connect_integration(request).await.map(drop)
}

async fn test(tenant: &Tenant, integration: &Integration) -> TestIntegrationResponse {
    let request = TestIntegrationRequest { id: integration.id.clone() };
    tenant.integrations().test_integration(request).await.expect("an answer").into_inner()
}

fn row(day: &str) -> Value {
    json!({
        "id": "w1", "couple_id": "c1", "bride_name": "Rosa", "groom_name": "Otto", "wedding_date": day, "ceremony_time": "15:00",
        "time_zone": "Europe/London", "venue_name": "Oak Hall", "guest_count": 120, "special_requests": "no flash",
    })
}

#[tokio::test]
async fn a_database_behind_tls_is_written_to_and_what_is_wrong_with_its_certificate_is_said() {
    let Some(secure) = Secure::start().await else { return };
    for engine in Engine::all() {
        println!("on {engine:?}");
        let mut system = Wedsync::start_on(&engine, &[]).await;
        let acme = Tenant::of(&system, "Acme").await;

        let refused = integration(&acme, "no certificate").await.expect_err("it is none");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let proven = secure.url("127.0.0.1", "verify-full");
        for (authority, url, part) in [
            (secure.stranger.as_str(), proven.clone(), "nobody who is trusted signed"),
            ("", proven.clone(), "nobody who is trusted signed"),
            (secure.authority.as_str(), secure.url("localhost", "verify-full"), "is for another host"),
            (secure.authority.as_str(), secure.url("127.0.0.1", "disable"), "(28000)"),
        ] {
            let integration = integration(&acme, authority).await.expect("an integration");
            let refused = connect(&acme, &integration, &url).await.expect_err(part);
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains(part), "{part}: {refused}");
        }

        let database = integration(&acme, &secure.authority).await.expect("an integration");
        connect(&acme, &database, &proven).await.expect("it is who it should be");
        assert!(test(&acme, &database).await.works);
        let organization = organization(acme.addresses.router, &acme.key).await;
        secure.run("DELETE FROM wedding_details").await;
        secure
            .run(&format!(
                "INSERT INTO wedding_details VALUES ('w1', '{organization}', '2027-06-12', now() - interval '1 day')"
            ))
            .await;
        let receiver = Server::start(Receiver::new(Profile::Crm, KEY, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).await;
        let crm = link(&acme, "crm", "", &[("url", receiver.base())], KEY).await;
        *receiver.vendor() = Receiver::new(Profile::Crm, KEY, &crm.secret);
        // Vendors speak of weddings that they were told of.
        acme.publish(updated("row", &row("2027-06-01"), &row("2027-06-12"))).await;
        taken(&receiver, "the wedding", |crm| crm.taken.first().map(drop).ok_or_else(|| format!("{:?}", crm.refused)))
            .await;
        let data = json!({ "wedding_id": "w1", "wedding_date": "2027-07-03" });
        let body = json!({ "type": "wedding.date_changed", "timestamp": now().to_string(), "data": data }).to_string();
        assert_eq!(crm.send_standard("moved", 0, &body).await.status, 200);
        eventually("the row has the day that the studio says", async || {
            let day = secure.run("SELECT wedding_date::text FROM wedding_details").await;
            if day == "2027-07-03" { Ok(()) } else { Err(day) }
        })
        .await;
        system.stop().await;
    }
}
