//! How many requests one address may send, before we know who it is: GCRA (the leaky bucket as a meter), one number per
//! address, bounded in memory. An IPv6 customer holds a whole /64, so that is one address here.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chassis::clock::Clock;
use moka::{policy::EvictionPolicy, sync::Cache};

/// How many addresses are remembered, the latest ones.
const ADDRESSES: u64 = 65_536;

/// The most that a limit can be: one a microsecond.
pub(crate) const PER_MINUTE_MAX: u32 = 60_000_000;

/// The limit per address.
pub(crate) struct Limit {
    /// When each address' requests so far would have been spent at the steady rate, in microseconds.
    spent_at: Cache<IpAddr, Arc<AtomicI64>>,
    /// One request at the steady rate, in microseconds.
    interval: i64,
    /// How far ahead of the steady rate an address may be, in microseconds.
    ahead: i64,
    clock: Clock,
}

impl Limit {
    /// `per_minute` requests in the long run, `burst` at once; both at least 1.
    pub(crate) fn new(per_minute: u32, burst: u32, clock: Clock) -> Self {
        let interval = i64::from(PER_MINUTE_MAX) / i64::from(per_minute.clamp(1, PER_MINUTE_MAX));
        let ahead = interval * i64::from(burst.max(1));
        // The least recently seen goes first: by frequency, an address that is new to a full memory would never enter.
        let spent_at = Cache::builder().max_capacity(ADDRESSES).eviction_policy(EvictionPolicy::lru()).build();
        Self { spent_at, interval, ahead, clock }
    }

    /// Counts one request of `address`.
    ///
    /// # Errors
    /// It is one too many, and isn't counted; the next may come after this time.
    pub(crate) fn take(&self, address: IpAddr) -> Result<(), Duration> {
        let now = self.clock.now_micros();
        let spent_at = self.spent_at.get_with(key(address), || Arc::new(AtomicI64::new(now)));
        let next = |spent_at| step(spent_at, now, self.interval, self.ahead);
        let taken = spent_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent_at| next(spent_at).ok());
        taken.map(drop).map_err(|spent_at| {
            let wait = next(spent_at).err().unwrap_or(self.interval);
            Duration::from_micros(wait.unsigned_abs())
        })
    }
}

/// The new `spent_at` after a request at `now`, or how long to wait for it. A clock that was set back makes nobody wait
/// longer than a full burst takes.
pub(crate) fn step(spent_at: i64, now: i64, interval: i64, ahead: i64) -> Result<i64, i64> {
    let next = spent_at.clamp(now, now + ahead) + interval;
    let excess = next - (now + ahead);
    if excess > 0 { Err(excess) } else { Ok(next) }
}

/// An address as it is counted.
pub(crate) fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use chassis::testing::manual_clock;
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_burst_passes_and_the_rest_comes_at_the_steady_rate() {
        let (time, clock) = manual_clock();
        let limit = Limit::new(60, 3, clock);
        let one = address("192.0.2.1");
        assert!((0..3).all(|_| limit.take(one).is_ok()));
        assert_eq!(limit.take(one), Err(Duration::from_secs(1)));
        time.advance(Duration::from_millis(400));
        assert_eq!(limit.take(one), Err(Duration::from_millis(600)), "being refused costs nothing");
        time.advance(Duration::from_millis(600));
        assert_eq!((limit.take(one).is_ok(), limit.take(one).is_ok()), (true, false));
    }

    #[test]
    fn addresses_do_not_share_a_limit_but_one_ipv6_network_does() {
        let (_, clock) = manual_clock();
        let limit = Limit::new(60, 1, clock);
        assert!(limit.take(address("192.0.2.1")).is_ok() && limit.take(address("192.0.2.2")).is_ok());
        assert!(limit.take(address("2001:db8::1")).is_ok());
        assert!(limit.take(address("2001:db8::ffff:1")).is_err(), "the same /64");
        assert!(limit.take(address("2001:db8:0:1::1")).is_ok(), "another /64");
        assert!(limit.take(address("::ffff:192.0.2.1")).is_err(), "an IPv4 address in another dress");
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let (time, clock) = manual_clock();
        let limit = Limit::new(60, 2, clock.clone());
        let one = address("192.0.2.1");
        assert!(limit.take(one).is_ok());
        time.set(clock.now() - jiff::SignedDuration::from_hours(5));
        assert_eq!(limit.take(one), Err(Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn no_window_sees_more_than_the_burst_and_the_rate(gaps in prop::collection::vec(0i64..3_000_000, 1..200), burst in 1i64..10) {
            let interval = 1_000_000;
            let (mut now, mut spent_at, mut taken) = (0, 0, Vec::new());
            for gap in gaps {
                now += gap;
                if let Ok(next) = step(spent_at, now, interval, interval * burst) {
                    spent_at = next;
                    taken.push(now);
                }
            }
            for (first, start) in taken.iter().enumerate() {
                for (count, end) in taken[first..].iter().enumerate() {
                    let allowed = burst + (end - start) / interval;
                    prop_assert!(i64::try_from(count).unwrap() < allowed, "{} in {}", count + 1, end - start);
                }
            }
        }
    }
}
