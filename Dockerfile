# syntax=docker/dockerfile:1

# The image holds the binary, the C library that it is linked with, the certificates of public
# authorities, and nothing else: no shell, no package manager, nobody's password.

FROM rust:1.95-bookworm AS build
# The same for both builds below, or the second would begin anew.
ENV CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols
WORKDIR /src
# Dependencies first: they change seldom, and this layer is then taken from the cache.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs \
 && cargo build --release --locked
COPY sql ./sql
COPY src ./src
COPY scripts/image-root.sh ./scripts/
RUN touch src/main.rs src/lib.rs && cargo build --release --locked
RUN scripts/image-root.sh target/release/rowcast /image

FROM scratch
COPY --from=build /image /
# The log of changes. A new volume that is mounted here takes its owner from this.
COPY --from=build --chown=65534:65534 /image/var/lib/rowcast /var/lib/rowcast
ENV ROWCAST_DATA=/var/lib/rowcast
# "nobody" of Debian, as a number: orchestrators that demand a non-root user look at nothing else.
USER 65534:65534
WORKDIR /
EXPOSE 4000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/rowcast"]
CMD ["serve"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["/usr/local/bin/rowcast", "health"]
