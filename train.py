"""Train one network, or with -m a grid of them.

    python train.py init=glorot_uniform act=tanh
    python train.py -m init=glorot_uniform,he_normal act=tanh,relu depth=3,10,30 'seed=range(5)'
    python train.py experiment=wandb_five_methods

`python train.py --help` lists the groups and keys; `tensorboard --logdir outputs` shows the curves.
"""

import sys

from initlab.cli.train import run_train

if __name__ == "__main__":
    sys.exit(run_train())
