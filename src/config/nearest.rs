//! Which known name somebody probably meant.

/// The candidate closest to `given`, if any is close enough to be worth a hint.
pub(super) fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let given = given.to_ascii_lowercase().replace('_', "-");
    // A third of the letters wrong is no slip any more.
    let limit = (given.chars().count() / 3).clamp(1, 4);
    let close = candidates
        .clone()
        .map(|candidate| (distance(&given, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= limit);
    if let Some((_, candidate)) = close {
        return Some(candidate);
    }
    // `backlog-size` for `repl-backlog-size` is far in letters and near in mind.
    let mut within = candidates.filter(|candidate| given.len() >= 4 && candidate.contains(given.as_str()));
    within.next()
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (above[j] + 1).min(row[j - 1] + 1).min(above[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["port", "repl-backlog-size", "repl-timeout", "upstream"];

    #[test]
    fn slips_find_the_name_that_was_meant() {
        let table = [
            ("prot", "port"),
            ("repl-backlog-sice", "repl-backlog-size"),
            ("repl_backlog_size", "repl-backlog-size"),
            ("REPL-TIMEOUT", "repl-timeout"),
            ("upsteram", "upstream"),
            ("backlog-size", "repl-backlog-size"),
        ];
        for (given, meant) in table {
            assert_eq!(nearest(given, NAMES.into_iter()), Some(meant), "{given}");
        }
    }

    #[test]
    fn a_word_like_none_gets_no_hint() {
        for given in ["", "x", "maxmemory", "completely-different"] {
            assert_eq!(nearest(given, NAMES.into_iter()), None, "{given}");
        }
    }

    #[test]
    fn a_swap_of_neighbours_counts_once() {
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
