# One image for every role; the command chooses: hansa coordinator | site | ...
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
WORKDIR /srv/hansa
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY hansa hansa
COPY commons commons
COPY governance governance
COPY orchestrator orchestrator
COPY workers workers
RUN python -m pip install -c requirements.lock '.[postgres,s3,samples]' \
    && useradd --create-home --uid 10001 hansa && mkdir -p /data && chown hansa /data
USER hansa
VOLUME /data
ENTRYPOINT ["hansa"]
CMD ["--help"]
