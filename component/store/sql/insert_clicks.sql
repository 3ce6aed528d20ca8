-- Takes a batch: journal, start, stop, the last link of the part before ('' for the first part), its own last link, time,
-- body, the number of the latest row of slug_reuses that its sender has heeded (NULL: it heeds none). No row: it does not go
-- on where the latest one of its journal ended, because it, or another one with some of the same clicks, was taken before;
-- or a slug was reused since. What is asked and what is done is one statement, so of two that come at once one is taken.
INSERT INTO click_batches (journal, start, stop, through, accepted_at, body)
SELECT ?1, ?2, ?3, ?5, ?6, ?7 WHERE CASE
    WHEN ?4 = '' THEN ?2 = ifnull((SELECT iif(through = '~', stop, -1) FROM click_batches WHERE journal = ?1), 0)
    ELSE EXISTS (
        SELECT 1 FROM click_batches WHERE journal = ?1 AND start = ?2 AND stop = ?3 AND through = ?4
    )
END AND (?8 IS NULL OR ?8 >= ifnull((SELECT max(number) FROM slug_reuses), 0))
RETURNING stop
