//! How many files and connections this process may hold open at once: the limit that its operating system gives it is
//! often 1,024 until it asks for more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asks for as many as this process may have, says how many that are, and gives them; none without a limit.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Where the system refuses, the limit stays what it was.
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        tracing::warn!(?current, ?maximum, "the limit of open files can't be raised");
    }
    let limit = limit();
    tracing::info!(?limit, "files and connections that may be open");
    limit
}

/// How many there may be; none without a limit.
#[must_use]
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_asking_there_are_as_many_as_there_may_be() {
        assert_eq!(raise(), getrlimit(Resource::Nofile).maximum);
        assert_eq!(limit(), getrlimit(Resource::Nofile).maximum);
    }
}
