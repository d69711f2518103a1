# featherlb with its packet path compiled; docs/e2e.md says how to run it.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates clang gcc libc6-dev libnetfilter-queue-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Use the image's CA certificates, which may include a company's, instead of pip's own.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# Dependencies first: this layer stays cached when only the sources change. Whatever the index gives
# has to have one of the hashes in these files (`make lock`), and builds fetch nothing else.
COPY docker/build-requirements.txt docker/requirements.txt ./
RUN python3 -m venv /opt/featherlb \
    && /opt/featherlb/bin/pip install --quiet --require-hashes --requirement build-requirements.txt \
    && /opt/featherlb/bin/pip install --quiet --require-hashes --no-build-isolation \
        --requirement requirements.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY contrib ./contrib
COPY examples ./examples
COPY featherlb ./featherlb
RUN /opt/featherlb/bin/pip install --quiet --no-deps --no-index --no-build-isolation . \
    && cd / && /opt/featherlb/bin/featherlb --version | grep compiled \
    && /opt/featherlb/bin/pip uninstall --quiet --yes setuptools pip \
    && find /opt/featherlb -name '*.so' -exec strip --strip-unneeded {} +

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
        iptables libnetfilter-queue1 python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/featherlb /opt/featherlb
ENV PATH=/opt/featherlb/bin:$PATH
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["featherlb", "status"]
ENTRYPOINT ["featherlb"]
CMD ["up"]
