# JupyterLab on the notebooks, on a CPU; README.md has the commands.
FROM python:3.12-slim AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /src

FROM python:3.12-slim
# torch without CUDA is 4 GB smaller
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /wheel/*.whl

RUN useradd --create-home --uid 1000 depthlens
USER depthlens
WORKDIR /home/depthlens
# models and answers, results; a new named volume takes the owner of the folder
RUN mkdir .cache runs
ENV DEPTHLENS_STORE=/home/depthlens/.cache/depthlens/store
COPY --chown=depthlens notebooks notebooks
VOLUME ["/home/depthlens/.cache", "/home/depthlens/runs"]
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
