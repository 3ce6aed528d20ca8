//! Whether a stream has a transaction open.

use crate::storage::statement::{begins_transaction, ends_transaction};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transaction {
    None,
    Open,
    /// The transaction was open on a stream that is gone, so the server rolls it back. Statements fail until the component
    /// acknowledges this with ROLLBACK.
    Lost,
}

impl Transaction {
    /// The state after `sql` has succeeded. Releasing an outermost savepoint also ends a transaction in SQLite, but here it
    /// counts as open, which is the safe assumption.
    pub fn after(self, sql: &str) -> Self {
        if begins_transaction(sql) {
            Self::Open
        } else if ends_transaction(sql) {
            Self::None
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_tracked_by_the_first_word() {
        use Transaction::{None, Open};
        for (before, sql, after) in [
            (None, "BEGIN", Open),
            (None, " -- x\n begin immediate", Open),
            (None, "SAVEPOINT a", Open),
            (None, "INSERT INTO t VALUES ('BEGIN')", None),
            (Open, "INSERT INTO t VALUES (1)", Open),
            (Open, "RELEASE a", Open),
            (Open, "ROLLBACK TO a", Open),
            (Open, "ROLLBACK TRANSACTION TO SAVEPOINT a", Open),
            (Open, "COMMIT", None),
            (Open, "END TRANSACTION", None),
            (Open, "rollback;", None),
        ] {
            assert_eq!(before.after(sql), after, "{sql}");
        }
    }
}
