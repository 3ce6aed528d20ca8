SELECT count(*) FROM links
