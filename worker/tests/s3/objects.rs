//! What is asked for: objects of one bucket, in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::http::{Answer, Request};

/// Entries of a page of a list: few, so that lists have several.
const PAGE: usize = 3;

#[derive(Default)]
pub(super) struct Objects {
    /// By keys: bytes and the number of the write.
    entries: BTreeMap<String, (Vec<u8>, u64)>,
    /// By ids: pieces by their numbers.
    uploads: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    pub(super) uploads_completed: u64,
    /// Of whole puts, in their order.
    pub(super) put_keys: Vec<String>,
    writes: u64,
}

impl Objects {
    pub(super) fn contents(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = self.entries.iter();
        entries
            .filter_map(|(key, (bytes, _))| {
                Some((key.strip_prefix(prefix)?.to_owned(), bytes.clone()))
            })
            .collect()
    }

    pub(super) fn alter(&mut self, key: &str, bytes: &[u8]) {
        self.store(key, bytes.to_vec());
    }

    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.entries.remove(key).is_some()
    }

    fn store(&mut self, key: &str, bytes: Vec<u8>) -> String {
        self.writes += 1;
        self.entries.insert(key.into(), (bytes, self.writes));
        tag(self.writes)
    }

    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        let has = |name: &str| request.query.contains_key(name);
        match (request.method.as_str(), request.key.is_empty()) {
            ("GET", true) => self.list(request),
            ("POST", true) if has("delete") => self.delete_all(request),
            ("GET" | "HEAD", false) => self.get(request),
            ("PUT", false) if has("uploadId") => self.piece(request),
            ("PUT", false) => self.put(request),
            ("POST", false) if has("uploads") => self.begin_upload(),
            ("POST", false) if has("uploadId") => self.complete_upload(request),
            ("DELETE", false) if has("uploadId") => {
                self.uploads.remove(&request.query["uploadId"]);
                Answer::new(204, "")
            }
            ("DELETE", false) => {
                self.entries.remove(&request.key);
                Answer::new(204, "")
            }
            _ => Answer::error(501, "NotImplemented", "not of this server"),
        }
    }

    fn put(&mut self, request: &Request) -> Answer {
        let there = self.entries.get(&request.key).map(|(_, write)| tag(*write));
        let none = request.header("if-none-match").is_some();
        let wanted = request.header("if-match");
        if none && there.is_some() || wanted.is_some() && wanted != there.as_deref() {
            return Answer::error(412, "PreconditionFailed", "it is another");
        }
        let tag = self.store(&request.key, request.body.clone());
        self.put_keys.push(request.key.clone());
        Answer::new(200, "").with("ETag", tag)
    }

    fn get(&self, request: &Request) -> Answer {
        let Some((bytes, write)) = self.entries.get(&request.key) else {
            return Answer::error(404, "NoSuchKey", "there is no such object");
        };
        let len = bytes.len();
        let range = request.header("range").map(|range| {
            let (first, last) = range
                .strip_prefix("bytes=")
                .unwrap()
                .split_once('-')
                .unwrap();
            let first: usize = first.parse().unwrap();
            let last = last
                .parse()
                .unwrap_or(usize::MAX)
                .min(len.saturating_sub(1));
            (first, last)
        });
        let answer = match range {
            None => Answer::new(200, bytes.clone()),
            Some((first, last)) if first <= last => Answer::new(206, &bytes[first..=last])
                .with("Content-Range", format!("bytes {first}-{last}/{len}")),
            Some(_) => return Answer::error(416, "InvalidRange", "it ends before"),
        };
        answer
            .with("ETag", tag(*write))
            .with("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT")
    }

    fn list(&self, request: &Request) -> Answer {
        let query = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (query("prefix"), query("delimiter"));
        // A key, or the folder that stands for those in it.
        let mut entries = BTreeSet::new();
        for key in self.entries.keys().filter(|key| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let end = if delimiter.is_empty() {
                None
            } else {
                rest.find(delimiter)
            };
            entries.insert(end.map_or(key.as_str(), |end| &key[..=prefix.len() + end]));
        }
        let after = query("continuation-token");
        let mut left = entries.into_iter().filter(|entry| *entry > after);
        let page: Vec<&str> = left.by_ref().take(PAGE).collect();
        let mut xml = String::from("<ListBucketResult>");
        for entry in &page {
            if let Some((bytes, write)) = self.entries.get(*entry) {
                let _ = write!(
                    xml,
                    "<Contents><Key>{entry}</Key><Size>{}</Size><ETag>{}</ETag>\
                     <LastModified>2030-01-01T00:00:00.000Z</LastModified></Contents>",
                    bytes.len(),
                    tag(*write)
                );
            } else {
                let _ = write!(
                    xml,
                    "<CommonPrefixes><Prefix>{entry}</Prefix></CommonPrefixes>"
                );
            }
        }
        if left.next().is_some() {
            let last = page.last().unwrap();
            let _ = write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>");
        }
        Answer::new(200, xml + "</ListBucketResult>")
    }

    fn delete_all(&mut self, request: &Request) -> Answer {
        let body = std::str::from_utf8(&request.body).unwrap();
        let mut xml = String::from("<DeleteResult>");
        for key in body.split("<Key>").skip(1) {
            let key = key.split('<').next().unwrap();
            self.entries.remove(key);
            let _ = write!(xml, "<Deleted><Key>{key}</Key></Deleted>");
        }
        Answer::new(200, xml + "</DeleteResult>")
    }

    fn begin_upload(&mut self) -> Answer {
        self.writes += 1;
        let id = format!("upload-{}", self.writes);
        self.uploads.insert(id.clone(), BTreeMap::new());
        let xml = format!("<R><UploadId>{id}</UploadId></R>");
        Answer::new(200, xml)
    }

    fn piece(&mut self, request: &Request) -> Answer {
        let number = request.query["partNumber"].parse().unwrap();
        let Some(pieces) = self.uploads.get_mut(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload", "it was given up");
        };
        pieces.insert(number, request.body.clone());
        Answer::new(200, "").with("ETag", tag(number))
    }

    fn complete_upload(&mut self, request: &Request) -> Answer {
        let Some(pieces) = self.uploads.remove(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload", "it was given up");
        };
        self.uploads_completed += 1;
        let tag = self.store(
            &request.key,
            pieces.into_values().collect::<Vec<_>>().concat(),
        );
        Answer::new(200, format!("<R><ETag>{tag}</ETag></R>"))
    }
}

fn tag(write: u64) -> String {
    format!("\"{write:08x}\"")
}
