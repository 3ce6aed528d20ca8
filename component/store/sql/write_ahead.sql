-- Lets readers and the one writer work without waiting for each other. The mode is stored in the file. A remote database
-- refuses the pragma.
PRAGMA journal_mode = WAL
