//! What the workers ask for, and over which connections.

/// A link that was acknowledged with 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub slug: String,
    pub url: String,
}

/// How a worker uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One connection per request, which carries `Connection: close`.
    Fresh,
    KeptAlive,
    /// Workers alternate: the first keeps its connection, the second does not, and so on.
    Both,
}

/// What the workers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// `POST` only.
    Writes,
    /// `GET` and `HEAD` of links that existed before: those of [`super::Load::knowing`].
    Known,
    /// Of 20 requests, 5 are `POST`, 8 are `GET` and 5 are `HEAD` of acknowledged links, and 2 are for slugs that do not exist.
    Usual,
}
