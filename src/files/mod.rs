//! Files: signed links that open one attachment of one conversation, and the route behind the links (`GET
//! /v1/files/{token}`).
//!
//! Guarantees: a link names its file and its conversation and is signed, so a caller cannot choose another file. A link
//! expires. A file is streamed and never stored.
//!
//! Not responsible for: which files are relayed, and the receivers (`delivery/`).

mod link;
mod server;

pub use link::{FileLinks, FileSource, LinkProblem, LinkedFile};
pub use server::{FileServer, router};

/// The content type for the extension of a name. A browser executes none of these types.
pub fn content_type_of(name: &str) -> &'static str {
    const KNOWN: &[(&str, &str)] = &[
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("jpeg", "image/jpeg"),
        ("gif", "image/gif"),
        ("webp", "image/webp"),
        ("heic", "image/heic"),
        ("pdf", "application/pdf"),
        ("txt", "text/plain"),
        ("log", "text/plain"),
        ("csv", "text/csv"),
        ("doc", "application/msword"),
        ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("xls", "application/vnd.ms-excel"),
        ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("ppt", "application/vnd.ms-powerpoint"),
        ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ("zip", "application/zip"),
        ("mp3", "audio/mpeg"),
        ("mp4", "video/mp4"),
        ("mpeg", "video/mpeg"),
        ("mpg", "video/mpeg"),
        ("mov", "video/quicktime"),
    ];
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    KNOWN.iter().find(|(known, _)| *known == ending).map_or("application/octet-stream", |(_, kind)| kind)
}

/// Whether a browser shows a file of this name as a picture.
pub fn is_image(name: &str, content_type: Option<&str>) -> bool {
    let by_name = content_type_of(name);
    by_name.starts_with("image/")
        || by_name == "application/octet-stream"
            && content_type.is_some_and(|kind| {
                ["image/png", "image/jpeg", "image/gif", "image/webp"].contains(&kind.trim())
            })
}
