//! ingress-nginx: how Ingresses, Services and EndpointSlices become the answer to "where does this request go".
//!
//! [`model`] compiles what is stored into upstreams and locations, [`decide`] routes one request through them, and
//! [`actor`] keeps a compiled model as late as the real controller would be.
