//! What this machine does by itself: the limits that stand beside our figures, measured in the same run; and what a
//! process has used.

use std::{
    fs,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use reqwest::Client;

use super::{
    figure::percentile,
    sink::{Sink, on_one_thread},
};

/// Connections of the bare client.
const CONNECTIONS: usize = 64;
/// How long it posts.
const POSTING: Duration = Duration::from_secs(2);
const SYNCS: usize = 1_000;

/// Requests per second that a bare reqwest client on one thread posts to the sink: 1 KiB over 64 connections.
pub(crate) fn posts_per_second(sink: &Sink) -> f64 {
    // Under a path that the sink doesn't count.
    let url = format!("http://{}/limit", sink.address);
    on_one_thread(async {
        #[expect(clippy::disallowed_methods, reason = "the limit is what a bare client does")]
        let client = Client::builder().no_proxy().pool_max_idle_per_host(CONNECTIONS).build().expect("a client");
        let until = Instant::now() + POSTING;
        let poster = |_| {
            let (client, url) = (client.clone(), url.clone());
            async move {
                let mut posted = 0u32;
                while Instant::now() < until {
                    let request = client.post(&url).header("content-type", "application/json").body(vec![b'x'; 1024]);
                    let answer = request.send().await.expect("the sink answers");
                    answer.bytes().await.expect("in full");
                    posted += 1;
                }
                posted
            }
        };
        let began = Instant::now();
        let posted: u32 = futures_util::future::join_all((0..CONNECTIONS).map(poster)).await.into_iter().sum();
        f64::from(posted) / began.elapsed().as_secs_f64()
    })
}

/// How long one write of 4 KiB takes to be on the disk, in ms: median and 99th percentile.
pub(crate) fn fsync_ms(folder: &Path) -> (f64, f64) {
    let mut file = tempfile::tempfile_in(folder).expect("the disk is writable");
    let block = [7u8; 4096];
    let mut taken: Vec<f64> = (0..SYNCS)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&block).expect("there is room");
            file.sync_all().expect("it is flushed");
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    taken.sort_by(f64::total_cmp);
    (percentile(&taken, 50.0), percentile(&taken, 99.0))
}

/// CPU time that a process has used, in ms.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses: state, then from the 14th field on the times, in ticks of 10 ms.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}

/// CPU time that PostgreSQL's processes have used, in ms.
pub(crate) fn postgres_cpu_ms() -> f64 {
    let processes =
        fs::read_dir("/proc").expect("Linux").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_postgres =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres");
    processes.filter(is_postgres).map(cpu_ms).sum()
}

/// Resident memory of a process in MiB: now, and the most it ever was.
pub(crate) fn resident_mib(pid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
    };
    (of("VmRSS:"), of("VmHWM:"))
}
