//! The running router over gRPC, on each engine: what it promises to publishers, consumers, subscribers and managers.

#[cfg(test)]
mod access;
#[cfg(test)]
mod broadcast;
#[cfg(test)]
mod capture;
#[cfg(test)]
mod capture_failover;
#[cfg(test)]
mod capture_faults;
#[cfg(test)]
mod capture_order;
#[cfg(test)]
mod capture_partitions;
#[cfg(test)]
mod capture_records;
#[cfg(test)]
mod capture_snapshot;
#[cfg(test)]
mod captures;
#[cfg(test)]
mod consume;
#[cfg(test)]
mod credit;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod limit;
#[cfg(test)]
mod log;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod subscribe;
#[cfg(test)]
mod weddings;
#[cfg(test)]
mod world;
