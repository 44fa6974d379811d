# The service on a machine without a graphics card:
#   docker build -t daedalus:0.1.0 .
#   docker run -p 7860:7860 daedalus:0.1.0
# On Linux, torch brings libraries for graphics cards along. To do without them, name an index of builds without:
#   docker build --build-arg TORCH_INDEX=ADDRESS -t daedalus:0.1.0 .
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 server
USER server
WORKDIR /home/server/daedalus
ENV PATH=/home/server/venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

COPY --chown=server setup.py settings.ini pyproject.toml constraints.txt README.md LICENSE openenv.yaml ./
COPY --chown=server daedalus daedalus
COPY --chown=server data data
COPY --chown=server paper/figures paper/figures

ARG TORCH_INDEX=
RUN python -m venv /home/server/venv \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -e '.[serve]'

# Compile the market engine now, so that the first visitor does not wait for it.
RUN python -c "import daedalus as dd; dd.simulate([dd.DEFAULT_MECHANISM], [dd.Population.stage(4)], [0])"

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["daedalus", "serve", "--host", "0.0.0.0", "--port", "7860"]
