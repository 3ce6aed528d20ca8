-- Up to where a journal was counted.
SELECT max(stop) FROM click_batches WHERE journal = ?1
