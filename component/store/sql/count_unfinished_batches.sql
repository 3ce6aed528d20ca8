-- The number of batches of which only a part has been added.
SELECT count(*) FROM click_batches WHERE through <> '~'
