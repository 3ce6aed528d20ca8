-- Adds a batch. The parameters are the journal, start, stop, the last link of the previous part ('' for the first part), the
-- last link of this part, the time, the body, and the number of the latest row of slug_reuses that the sender has taken into
-- account (NULL: the sender does not know of reuses). No row means that the batch was not added: it does not start where the
-- journal's latest batch ended, because it or an overlapping batch was added before, or a slug has been reused since. The
-- check and the insert are one statement, so of two identical batches at the same time only one is added.
INSERT INTO click_batches (journal, start, stop, through, accepted_at, body)
SELECT ?1, ?2, ?3, ?5, ?6, ?7 WHERE CASE
    WHEN ?4 = '' THEN ?2 = ifnull((SELECT iif(through = '~', stop, -1) FROM click_batches WHERE journal = ?1), 0)
    ELSE EXISTS (
        SELECT 1 FROM click_batches WHERE journal = ?1 AND start = ?2 AND stop = ?3 AND through = ?4
    )
END AND (?8 IS NULL OR ?8 >= ifnull((SELECT max(number) FROM slug_reuses), 0))
RETURNING stop
