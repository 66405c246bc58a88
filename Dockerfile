# The operator's image: docker build --tag REPOSITORY:TAG . (takes BuildKit, for the cache mounts)
ARG RUST_VERSION=1.95

# Debian 12 as below: the binary must not want a newer glibc than the one it runs on.
FROM rust:${RUST_VERSION}-slim-bookworm AS build
ARG TARGETPLATFORM
WORKDIR /src
COPY . .
# The target folder is a cache and no part of the layer, hence the copy; one per platform, for they do not mix.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,id=canary-operator-target-${TARGETPLATFORM},sharing=locked \
    cargo build --release --locked --bin canary-operator \
    && install -D target/release/canary-operator /out/canary-operator

FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="canary-operator" \
      org.opencontainers.image.description="Progressive releases behind ingress-nginx from one object: canary, judge, promote or roll back." \
      org.opencontainers.image.source="https://github.com/canary-operator/canary-operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/canary-operator /usr/local/bin/canary-operator
# By number: runAsNonRoot cannot tell what a name stands for.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/canary-operator"]
CMD ["run"]
