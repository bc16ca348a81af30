# The one place that names the base; both stages stand on it.
ARG BASE=python:3.13.7-slim-bookworm

# --- build: everything the service needs, in one folder -----------------------------------------
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The pins come first, so that a change of the code does not fetch them again.
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/jobpipe \
 && pip --python /opt/jobpipe/bin/python install --require-hashes --only-binary :all: -r requirements/runtime.txt \
 && pip install --require-hashes --only-binary :all: -r requirements/build.txt

COPY pyproject.toml README.md LICENSE ./
COPY jobpipe/ jobpipe/
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/jobpipe/bin/python install --no-deps --no-index /wheels/jobpipe-*.whl

# --- the image: Python, that folder, and a user that owns nothing but its data -------------------
FROM ${BASE}
LABEL org.opencontainers.image.title="jobpipe" \
      org.opencontainers.image.description="Background jobs over HTTP: a durable queue and a pool of workers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.authors="the jobpipe authors"

COPY --from=build /opt/jobpipe /opt/jobpipe
RUN install -d -o 10001 -g 10001 -m 0750 /data

ENV PATH=/opt/jobpipe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8080 \
    STORE=sqlite:/data/jobpipe.db

# Modules named in HANDLERS are looked up here: mount or copy them into /app.
WORKDIR /app
VOLUME /data
EXPOSE 8080

USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["jobpipe", "health"]

# Exec form: jobpipe is process 1 and gets the signal itself. It may take GRACE seconds to drain.
ENTRYPOINT ["jobpipe"]
CMD ["serve"]
