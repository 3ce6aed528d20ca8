-- The first fault in the structure of the database file, or "ok".
PRAGMA quick_check(1)
