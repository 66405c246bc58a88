//! What a judge says of what is counted.
