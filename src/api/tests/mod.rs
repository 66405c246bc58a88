//! What the API server is told to refuse, that it is told so, and what is told to users.

mod docs;
mod files;
mod mistakes;
