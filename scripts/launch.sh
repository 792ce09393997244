# Sourced by the training scripts: starts videoxl.train in one process or many.
#
#   LAUNCHER    deepspeed (default), torchrun, or python (one process)
#   GPUS        processes on this machine (default: all GPUs)
#   HOSTFILE    deepspeed's list of machines, which must share the disk of OUTPUT; with torchrun use NNODES, NODE_RANK and MASTER_ADDR
#   MASTER_PORT where the processes meet (default 29500)
#   DEEPSPEED   its configuration; empty: plain PyTorch (one GPU, data parallel, or FSDP2 by --fsdp full_shard)
#   PYTHON      the interpreter (default: .venv/bin/python if it exists, else python)

# launch DEFAULT_CONFIGURATION FLAGS...
launch() {
    local configuration=${DEEPSPEED-$1} python=${PYTHON:-}
    shift
    if [ -z "$python" ]; then
        python=python
        if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
    fi
    if [ -n "$configuration" ]; then
        set -- --deepspeed "$configuration" "$@"
    fi
    if command -v nvidia-smi >/dev/null; then
        set -- --tf32 True "$@"
    fi
    case ${LAUNCHER:-deepspeed} in
        deepspeed)
            "$python" -m deepspeed.launcher.runner --master_port "${MASTER_PORT:-29500}" \
                ${HOSTFILE:+--hostfile "$HOSTFILE"} ${GPUS:+--num_gpus "$GPUS"} --module videoxl.train "$@" ;;
        torchrun)
            "$python" -m torch.distributed.run --nproc_per_node "${GPUS:-gpu}" --master_port "${MASTER_PORT:-29500}" \
                --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} \
                -m videoxl.train "$@" ;;
        python)
            "$python" -m videoxl.train "$@" ;;
        *)
            echo "error: LAUNCHER is '$LAUNCHER'; use deepspeed, torchrun or python" >&2
            return 2 ;;
    esac
}
