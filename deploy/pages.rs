//! Lists that services give page by page, as far as somebody wants them; whoever sees a part of one is told so.

use anyhow::Result;
use clap::builder::RangedI64ValueParser;

use crate::table::{say, show};

/// What a service gives at once, at most.
const PAGE: usize = 500;

/// A `--limit` that asks for something.
pub(crate) fn at_least_one() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// Rows of a list, and whether there are more.
pub(crate) struct Listed<T> {
    pub(crate) rows: Vec<T>,
    is_cut: bool,
}

/// The first `limit` rows. `page` takes how many, and the token of the page; it gives rows and the token of the next.
///
/// One more is asked for: a service names a next page also where that has nothing.
pub(crate) async fn list<T>(
    limit: u32,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String)>,
) -> Result<Listed<T>> {
    let limit = limit as usize;
    let (mut rows, mut token) = (Vec::new(), String::new());
    while rows.len() <= limit {
        let size = i32::try_from(PAGE.min(limit + 1 - rows.len())).expect("at most 500");
        let (further, next) = page(size, token).await?;
        let is_last = further.is_empty() || next.is_empty();
        rows.extend(further);
        if is_last {
            break;
        }
        token = next;
    }
    let is_cut = rows.len() > limit;
    rows.truncate(limit);
    Ok(Listed { rows, is_cut })
}

impl<T> Listed<T> {
    /// Prints them under a heading.
    pub(crate) fn show(self, heading: &[&str], row: impl FnMut(T) -> Vec<String>) {
        let shown = self.rows.len();
        show(heading, self.rows.into_iter().map(row));
        if self.is_cut {
            say(&format!("these are the first {shown}, there are more: --limit shows further ones"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that has the numbers below `total`, and names a next page after each full one.
    async fn first(limit: u32, total: usize) -> (usize, bool, usize) {
        let mut asked = 0;
        let page = async |size: i32, token: String| {
            asked += 1;
            let (from, size) = (token.parse().unwrap_or_default(), usize::try_from(size).expect("above 0"));
            let to = total.min(from + size);
            Ok(((from..to).collect(), if to == from + size { to.to_string() } else { String::new() }))
        };
        let listed = list(limit, page).await.expect("it answers");
        assert_eq!(listed.rows, (0..listed.rows.len()).collect::<Vec<_>>(), "in their order, each once");
        (listed.rows.len(), listed.is_cut, asked)
    }

    #[tokio::test]
    async fn a_list_is_read_page_by_page_to_its_limit_and_says_whether_it_is_whole() {
        assert_eq!(first(50, 0).await, (0, false, 1));
        assert_eq!(first(50, 50).await, (50, false, 1));
        assert_eq!(first(50, 51).await, (50, true, 1));
        assert_eq!(first(500, 500).await, (500, false, 2));
        assert_eq!(first(1_200, 1_100).await, (1_100, false, 3));
        assert_eq!(first(1_000, 1_001).await, (1_000, true, 3));
    }

    #[tokio::test]
    async fn a_service_that_promises_more_and_gives_nothing_is_not_asked_for_ever() {
        let listed = list(10, async |_, _| Ok((Vec::<u8>::new(), "next".to_owned()))).await.expect("it answers");
        assert!(!listed.is_cut && listed.rows.is_empty());
    }
}
