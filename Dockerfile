# The image of the one program, `minutebook`. docker-compose.yml runs it; see there.
#
# BuildKit builds it (Docker 23 or later, or `podman build`): the caches of the build step are mounts. Both
# stages are of the same Debian release, because the program is linked against its C library.

FROM rust:1.95-slim-trixie AS build
WORKDIR /src
# Only what .dockerignore lets through. `tests` is not built, but the workspace names it.
COPY . .
# The mounts keep downloads and built dependencies from one build to the next; they are no part of the image, so
# the program is copied out. Touching the sources makes cargo build our own crates each time: it goes by the time
# of a file, and a checkout that is older than the last build would be taken for built. One build at a time uses
# the mount, so that no other replaces the program before it is copied.
RUN --mount=type=cache,id=minutebook-cargo-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=minutebook-target,target=/src/target,sharing=locked \
    find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo build --locked --release --bin minutebook \
    && cp target/release/minutebook /usr/local/bin/minutebook

FROM debian:trixie-slim
# The certificates are for what is reached over TLS: a PostgreSQL, a NATS, the keys of tokens. curl asks the health
# routes, and is the way to an API that listens on loopback: `docker compose exec api curl …`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 minutebook \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin minutebook \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/minutebook
COPY --from=build /usr/local/bin/minutebook /usr/local/bin/minutebook
# The keys are made here, in keys/, if no volume has them.
ENV MINUTEBOOK_DATA_DIR=/var/lib/minutebook
# By number: a cluster that demands a user other than root can see that this is one.
USER 10001:10001
# There is no PostgreSQL in here, and no place for one: DATABASE_URL has to name it. A log in a container's own
# layer would be gone with the container.
#
# There is no HEALTHCHECK, because the same image runs commands that serve nothing; docker-compose.yml has one for
# each service that does.
ENTRYPOINT ["minutebook"]
CMD ["serve"]
