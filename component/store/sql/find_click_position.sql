-- How far a journal has been counted; see click_batches.
SELECT start, stop, through FROM click_batches WHERE journal = ?1
