-- The number of clicks on all links, those of bots included.
SELECT ifnull(sum(clicks + bots), 0) FROM click_days WHERE link_id = 0
