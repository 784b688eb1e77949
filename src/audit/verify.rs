//! Whether a chain is whole.

use serde::Deserialize;

use crate::chain::{DIGEST_BYTES, Head};

/// What is wrong with a line, or between two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The line is no record.
    #[error("not a record: {0}")]
    NotARecord(String),
    /// Lines are missing, or stand elsewhere.
    #[error("expected record {expected}, found {found}")]
    Order {
        /// Number that was due.
        expected: u64,
        /// Number that the line has.
        found: u64,
    },
    /// The number is right, and the line before is another one than when this was written.
    #[error(
        "record {sequence} does not follow from the line before it: one of the two was changed"
    )]
    Changed {
        /// Number of the line.
        sequence: u64,
    },
    /// The chain does not have a line that it is known to have.
    #[error("the record {expected} is not there; the last one is {found}")]
    End {
        /// The line.
        expected: String,
        /// Where it ends.
        found: String,
    },
}

/// The place of a line in the chain.
#[derive(Deserialize)]
struct Link {
    sequence: u64,
    previous: String,
}

/// Reads a chain line by line.
#[derive(Debug)]
pub struct Verifier {
    head: Head,
    records: u64,
    known: Option<Head>,
    /// The known place was passed, with the digest that it is known to have.
    found_known: bool,
}

impl Verifier {
    /// For a chain that begins behind `after`, where older lines were put elsewhere, else at the first line that ever was. `known` is
    /// where a line was that it has to have, kept elsewhere.
    #[must_use]
    pub fn new(after: Option<Head>, known: Option<Head>) -> Self {
        let head = after.unwrap_or(Head::START);
        Self {
            head,
            records: 0,
            known,
            found_known: known == Some(head),
        }
    }

    /// The next line, without its line feed.
    ///
    /// # Errors
    /// It is not the line that was written behind the one before. What follows is judged on from this line.
    pub fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let link: Link =
            serde_json::from_slice(line).map_err(|error| Fault::NotARecord(error.to_string()))?;
        let mut previous = [0; DIGEST_BYTES];
        hex::decode_to_slice(&link.previous, &mut previous)
            .map_err(|_| Fault::NotARecord("\"previous\" is no SHA-256".to_owned()))?;
        let head = Head::behind(link.sequence, line);
        let before = std::mem::replace(&mut self.head, head);
        self.records = self.records.saturating_add(1);
        self.found_known |= self.known == Some(head);
        let expected = before.sequence.saturating_add(1);
        if link.sequence != expected {
            return Err(Fault::Order {
                expected,
                found: link.sequence,
            });
        }
        if previous != before.digest {
            return Err(Fault::Changed {
                sequence: link.sequence,
            });
        }
        Ok(())
    }

    /// There are no more lines.
    ///
    /// # Errors
    /// A line that is known to have been written is missing at the end, or another one stands in its place.
    pub fn end(&self) -> Result<(), Fault> {
        let Some(known) = self.known else {
            return Ok(());
        };
        if !self.found_known {
            return Err(Fault::End {
                expected: known.to_string(),
                found: self.head.to_string(),
            });
        }
        Ok(())
    }

    /// Behind the last line.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Lines that were records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chain::{Body, Chain};
    use crate::record::{Event, Record};

    fn lines(count: usize) -> Vec<String> {
        let mut chain = Chain::behind(Head::START);
        (0..count)
            .map(|number| {
                let record = Record {
                    reason: Some(format!("reason {number}")),
                    ..Record::new(Event::SessionRefused)
                };
                chain.line(&Body::of(&record), Duration::ZERO)
            })
            .collect()
    }

    fn faults(lines: &[String], known: Option<Head>) -> Vec<Fault> {
        faults_after(None, lines, known)
    }

    fn faults_after(after: Option<Head>, lines: &[String], known: Option<Head>) -> Vec<Fault> {
        let mut verifier = Verifier::new(after, known);
        let mut faults: Vec<Fault> = lines
            .iter()
            .filter_map(|line| verifier.line(line.as_bytes()).err())
            .collect();
        faults.extend(verifier.end().err());
        faults
    }

    #[test]
    fn a_chain_as_it_was_written_is_whole_and_so_is_what_follows_a_line_that_is_known() {
        let lines = lines(20);
        assert_eq!(faults(&lines, None), []);
        for (number, from) in (1..).zip(1..20) {
            let after = Head::behind(number, lines[from - 1].as_bytes());
            assert_eq!(faults_after(Some(after), &lines[from..], None), []);
            let expected = Fault::Order {
                expected: 1,
                found: after.sequence + 1,
            };
            assert_eq!(faults(&lines[from..], None), [expected]);
        }
    }

    #[test]
    fn every_line_that_is_removed_changed_added_or_moved_is_noticed() {
        let whole = lines(20);
        for at in 0..19_usize {
            let mut removed = whole.clone();
            removed.remove(at);
            assert!(!faults(&removed, None).is_empty(), "{at}");

            let mut changed = whole.clone();
            changed[at] = changed[at].replace("reason", "Reason");
            assert!(!faults(&changed, None).is_empty(), "{at}");

            let mut moved = whole.clone();
            moved.swap(at, at + 1);
            assert!(!faults(&moved, None).is_empty(), "{at}");

            let mut twice = whole.clone();
            twice.insert(at, whole[at].clone());
            assert!(!faults(&twice, None).is_empty(), "{at}");
        }
    }

    #[test]
    fn what_is_cut_off_or_changed_at_the_end_is_noticed_by_who_knows_the_end() {
        let whole = lines(20);
        let end = Head::behind(20, whole[19].as_bytes());
        assert_eq!(faults(&whole, Some(end)), []);
        assert_eq!(faults(&whole[..19], None), []);
        assert!(matches!(
            faults(&whole[..19], Some(end))[..],
            [Fault::End { .. }]
        ));
        let mut changed = whole.clone();
        changed[19] = changed[19].replace("reason", "Reason");
        assert_eq!(faults(&changed, Some(end)).len(), 1);
        // It was kept when the chain was shorter.
        let middle = Head::behind(10, whole[9].as_bytes());
        assert_eq!(faults(&whole, Some(middle)), []);
        assert_eq!(faults(&[], Some(end)).len(), 1);
        // What cannot be compared is not found.
        let after = Head::behind(5, whole[4].as_bytes());
        for (known, found) in [
            (after, 0),
            (Head::behind(2, b"x"), 1),
            (Head::behind(5, b"x"), 1),
        ] {
            assert_eq!(
                faults_after(Some(after), &whole[5..], Some(known)).len(),
                found
            );
        }
    }

    #[test]
    fn what_is_no_record_is_named_and_the_rest_is_judged() {
        let mut lines = lines(4);
        lines.insert(2, "{}".to_owned());
        let faults = faults(&lines, None);
        assert!(matches!(faults[..], [Fault::NotARecord(_)]), "{faults:?}");
    }
}
