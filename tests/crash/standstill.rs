//! SIGSTOP for longer than any keepalive, then SIGCONT: the process finds itself in a later world. Meanwhile a second one
//! tries to take its store.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tonic::Status;

use super::{Mood, Verdict, World, endpoint};
use crate::harness::{Engine, Postgres, Wedsync, client};
use proto::vendorsync::v1::{CreateEndpointRequest, Endpoint, endpoint_service_client::EndpointServiceClient};

/// A second process is told within this time that the store is another's.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// A process that has lost its store ends within this time of finding out, which the test has waited for already.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// Lets it stand still for `standing`, `times` times.
pub(crate) async fn run(engine: &Engine, rate: u32, standing: Duration, times: u32) -> Verdict {
    let mut verdict = Verdict::on(engine, "standstill");
    let mut world = World::start(Wedsync::start_on(engine, &[]).await, rate).await;
    for _ in 0..times {
        world.acknowledges(100).await;
        let from = Instant::now();
        world.system.freeze().await;
        match world.system.beside().ended(REFUSED_WITHIN).await {
            Some(status) if !status.success() => {
                verdict.note = format!("a second process was refused after {:?}", from.elapsed());
            }
            other => verdict.broke(format!("a second process took the store: {other:?}")),
        }
        sleep(standing.saturating_sub(from.elapsed())).await;
        world.mark();
        let thawed = Instant::now();
        world.system.thaw().await;
        world.acknowledges(100).await;
        let recovery = world.recovery_ms(thawed).await;
        world.broken_since(from);
        verdict.recovered(recovery);
    }
    verdict.settle(world).await
}

/// Lets it stand still while its server restarts and a second process takes the store over. The first one, when it goes
/// on, must neither write nor send, and end.
pub(crate) async fn taken_over(rate: u32) -> Verdict {
    let mut server = Postgres::start().await;
    let engine = Engine::Postgres(server.url());
    let mut verdict = Verdict::on(&engine, "taken-over");
    let mut world = World::start(Wedsync::start_on(&engine, &[]).await, rate).await;
    world.acknowledges(100).await;
    // Something waits in the store, which both would find due.
    world.targets[0].catcher.feel(Mood::Failing);
    world.acknowledges(100).await;
    let from = Instant::now();
    world.system.freeze().await;
    server.stop_immediately().await;
    server.run().await;
    let mut second = world.system.beside();
    second.is_ready().await;
    world.system.thaw().await;
    // Long enough for the first one to connect again and to find out.
    sleep(Duration::from_secs(5)).await;
    world.broken_since(from);
    if let Ok(id) = world.another_endpoint().await {
        verdict.broke(format!("the first process still made endpoint {id}, of which the second knows nothing"));
    }
    let before = world.load.acknowledged().len();
    world.targets[0].catcher.feel(Mood::Well);
    // The breaker of the endpoint lets a probe through within 12 s, and what waited follows.
    sleep(Duration::from_secs(20)).await;
    let since = world.load.acknowledged().len() - before;
    if since > 0 {
        verdict.broke(format!("the first process still acknowledged {since} events"));
    }
    match world.system.ended(ENDED_WITHIN).await {
        Some(end) if !end.success() => verdict.note = format!("the first process ended by itself: {end}"),
        Some(end) => verdict.broke(format!("the first process ended as if all were well: {end}")),
        None => {
            verdict.broke("the first process goes on without its store");
            world.kill().await;
        }
    }
    second.stop().await;
    world.mark();
    let started = Instant::now();
    world.system.restart().await;
    let recovery = world.recovery_ms(started).await;
    verdict.recovered(recovery);
    verdict.settle(world).await
}

impl World {
    /// Asks vendor-sync for one more endpoint, for events that nobody publishes.
    async fn another_endpoint(&self) -> Result<String, Status> {
        let mut endpoints = EndpointServiceClient::new(client(self.system.addresses.vendor_sync, &self.key));
        let endpoint = Endpoint { url: self.targets[0].catcher.url(), ..endpoint("test.never", false) };
        let created = endpoints.create_endpoint(CreateEndpointRequest { endpoint: Some(endpoint) }).await?;
        Ok(created.into_inner().endpoint.expect("the answer holds it").id)
    }
}
