use serde::{Deserialize, Serialize};
pub const LIST_NAME: &str = "payload.json";
pub const LIST_FORMAT: u32 = 1;
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub format: u32,
    pub version: String,
    pub arch: String,
    pub entries: Vec<Listed>,
}
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub path: String,
    pub mode: String,
    pub file: Option<ListedFile>,
}
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    pub size: u64,
    pub sha256: String,
    pub conffile: bool,
}
