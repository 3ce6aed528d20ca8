use links_domain::error::Unavailable;
use links_domain::slug::Slug;
use links_domain::stats::{Found, Granularity, Link, Span, TOP};
use links_platform::database::{Mode, Value};

use crate::rows::{count, pair, triple};
use crate::sketch;
use crate::sql::{FIND_LINK_ID, STATS_DAYS, STATS_DETAILS, STATS_HOURS, STATS_TOP, STATS_VISITORS};
use crate::store::{ALL_LINKS, Store};
use crate::values::{number, text};

impl Store {
    /// The id of a link in the tables of clicks.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn find_id(&self, slug: &Slug) -> Result<Option<i64>, Unavailable> {
        let slug = [Value::Text(slug.as_str().to_owned())];
        let rows = self.query(FIND_LINK_ID, &slug, Mode::Read).await?;
        Ok(rows.first().and_then(|row| row.get::<i64>(0)))
    }

    /// The statistics of the link with this id, or of [`ALL_LINKS`].
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn stats(&self, link: i64, span: Span) -> Result<Found, Unavailable> {
        let query =
            async |statement, values: [i64; 3]| self.query(statement, &values.map(Value::Integer), Mode::Read).await;
        let (first_day, last_day) = span.days();
        let mut found = Found::default();
        let clicks = match span.granularity {
            Granularity::Hour => STATS_HOURS,
            Granularity::Day => STATS_DAYS,
        };
        for row in query(clicks, [link, span.start, span.stop]).await? {
            found.clicks.extend(triple(row, number, count, count));
        }
        if span.granularity == Granularity::Day {
            for row in query(STATS_VISITORS, [link, span.start, span.stop]).await? {
                let visitors = pair(row, number, text);
                found
                    .visitors
                    .extend(visitors.map(|(day, words)| (day, sketch::parse(&words))));
            }
        }
        for row in query(STATS_DETAILS, [link, first_day, last_day]).await? {
            found.details.extend(triple(row, number, text, count));
        }
        if link == ALL_LINKS {
            let rows = query(STATS_TOP, [first_day, last_day, TOP]).await?;
            let links = rows.into_iter().filter_map(|row| triple(row, text, count, count));
            let links = links.map(|(slug, clicks, bots)| Link { slug, clicks, bots });
            found.links = Some(links.collect());
        }
        Ok(found)
    }
}
