//! Whether an endpoint's books balance: what publishers were told is durable, what the delivery rows say (over the public
//! calls), and what its receiver logged, held against each other. Asked after every fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proto::vendorsync::v1::{
    Delivery, DeliveryState, GetEndpointStatisticsRequest, ListDeliveriesRequest,
    delivery_service_client::DeliveryServiceClient, endpoint_service_client::EndpointServiceClient,
};
use tokio::time::sleep;

use super::{Item, Target};
use crate::harness::{Key, Wedsync, client};

/// From a request's arrival until its end is durable: the linger and two commits, on a machine that has other work too.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);
/// Commits of the last ones may still be under way.
const COMMITTED_WITHIN: Duration = Duration::from_secs(10);
/// A healthy endpoint's delivery is tried when it is due, or this much later.
const TRIED_WITHIN: Duration = Duration::from_secs(60);

/// What is wrong with an endpoint's rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Events that call for one and have none.
    missing: u64,
    /// Beyond the first of their event.
    doubled: u64,
    /// Of events that nobody published, or that the endpoint doesn't want.
    strange: u64,
    /// Waiting, sending or blocked.
    open: u64,
    /// Dead, cancelled or unknown.
    ended: u64,
    /// By how much the statistics differ from the rows.
    miscounted: u64,
    /// Delivered, and the receiver never got it, or got it under another id.
    pub(super) unreceived: u64,
    /// Of the open ones, those that should have been tried long ago.
    pub(super) overdue: u64,
}

impl Rows {
    pub(super) fn amiss(&self) -> u64 {
        self.missing + self.doubled + self.strange + self.open + self.ended + self.miscounted
    }

    pub(super) fn is_good(&self) -> bool {
        self.amiss() + self.unreceived + self.overdue == 0
    }
}

/// Reads an endpoint's rows until they are as they must be, or have had the time to be.
pub(super) async fn rows(system: &Wedsync, key: &Key, target: &Target, acknowledged: &BTreeSet<Item>) -> Rows {
    let began = Instant::now();
    loop {
        let rows = held_against(&list(system, key, target).await, target, acknowledged);
        let rows = Rows { miscounted: miscounted(system, key, target, &rows, acknowledged).await, ..rows };
        if rows.is_good() || began.elapsed() > COMMITTED_WITHIN {
            return rows;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Repeats of deliveries that were not under way when something was broken: their end was durable, or should have been.
pub(super) fn unprovoked(target: &Target, faults: &[(Instant, Instant)]) -> u64 {
    let excused =
        |before: Instant| faults.iter().any(|(from, until)| before + RECORDED_WITHIN >= *from && before <= *until);
    target.catcher.repeats().iter().filter(|(before, _)| !excused(*before)).count() as u64
}

/// Deliveries whose request came shortly before a fault or during it.
pub(super) fn in_flight(target: &Target, faults: &[(Instant, Instant)]) -> u64 {
    let under_way = |(from, until): &(Instant, Instant)| {
        target.catcher.requests_within(from.checked_sub(RECORDED_WITHIN).unwrap_or(*from), *until) as u64
    };
    faults.iter().map(under_way).sum()
}

/// First arrivals that came before their predecessor of the same key in the log.
pub(super) fn out_of_order(target: &Target, log: &BTreeMap<Item, u64>) -> u64 {
    let seen = target.catcher.seen();
    let mut arrivals: Vec<_> =
        seen.iter().filter_map(|(item, seen)| Some((item.key(), log.get(item)?, seen.at))).collect();
    arrivals.sort_unstable();
    arrivals.windows(2).filter(|pair| pair[0].0 == pair[1].0 && pair[0].2 > pair[1].2).count() as u64
}

async fn list(system: &Wedsync, key: &Key, target: &Target) -> Vec<Delivery> {
    let mut client = DeliveryServiceClient::new(client(system.addresses.vendor_sync, key));
    let mut request =
        ListDeliveriesRequest { page_size: 500, endpoint_id: target.id.clone(), ..ListDeliveriesRequest::default() };
    let mut deliveries = Vec::new();
    loop {
        let page = client.list_deliveries(request.clone()).await.expect("the rows can be read").into_inner();
        deliveries.extend(page.deliveries);
        if page.next_page_token.is_empty() {
            return deliveries;
        }
        request.page_token = page.next_page_token;
    }
}

fn held_against(deliveries: &[Delivery], target: &Target, acknowledged: &BTreeSet<Item>) -> Rows {
    let mut rows = Rows::default();
    let seen = target.catcher.seen();
    let mut of: BTreeMap<Item, u64> = BTreeMap::new();
    for delivery in deliveries {
        let Some(item) = Item::of(&delivery.event_id).filter(|item| acknowledged.contains(item) && target.wants(*item))
        else {
            rows.strange += 1;
            continue;
        };
        *of.entry(item).or_default() += 1;
        match delivery.state() {
            DeliveryState::Delivered => {
                let received = seen.get(&item).is_some_and(|seen| seen.webhook_id == delivery.webhook_id);
                rows.unreceived += u64::from(!received);
            }
            DeliveryState::Waiting | DeliveryState::Sending | DeliveryState::Blocked => {
                rows.open += 1;
                rows.overdue += u64::from(is_overdue(delivery));
            }
            _ => rows.ended += 1,
        }
    }
    let wanted = acknowledged.iter().filter(|item| target.wants(**item));
    rows.missing = wanted.filter(|item| !of.contains_key(item)).count() as u64;
    rows.doubled = of.values().map(|number| number - 1).sum();
    rows
}

fn is_overdue(delivery: &Delivery) -> bool {
    #[expect(clippy::disallowed_methods, reason = "rows are held against the time outside the system")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let due = delivery.next_attempt_at.as_ref().and_then(|at| u64::try_from(at.seconds).ok());
    due.is_some_and(|due| Duration::from_secs(due) + TRIED_WITHIN < now)
}

/// The sums that users see are those of the rows.
async fn miscounted(system: &Wedsync, key: &Key, target: &Target, rows: &Rows, acknowledged: &BTreeSet<Item>) -> u64 {
    let mut endpoints = EndpointServiceClient::new(client(system.addresses.vendor_sync, key));
    let request = GetEndpointStatisticsRequest { id: target.id.clone(), since: None };
    let counts = endpoints.get_endpoint_statistics(request).await.expect("statistics").into_inner();
    let wanted = acknowledged.iter().filter(|item| target.wants(**item)).count() as u64;
    let counted = counts.delivered + counts.waiting + counts.dead + counts.cancelled;
    (counted + rows.missing).abs_diff(wanted + rows.doubled + rows.strange)
}
