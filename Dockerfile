# The steps of make, in a container:
#   docker build -t astra-testbed . && docker run --rm --privileged -v "$PWD/results:/results" astra-testbed
# Emulated hosts need namespaces, so --privileged. Without it, runs fall back to network=loopback.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --no-install-recommends -y make git iproute2 util-linux mount dataset-fashion-mnist \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /testbed
COPY . .
RUN make setup
ENV TESTBED_CACHE=/cache
VOLUME ["/cache", "/results"]
ENTRYPOINT ["/testbed/.venv/bin/python", "-m", "testbed.run"]
CMD ["+experiment=smoke", "results_dir=/results"]
