SELECT {{columns}} FROM links WHERE slug = ?1
