"""Trial arrays: trainings of one shape, each with settings and weights of its own, run as one program.

Small networks leave a large GPU idle. `layers` holds K networks' layers as one, `network` makes such a network and says
where that cannot be, `optimizer` updates all weights at once, `epoch` trains one epoch, and `trials` holds the trials.
"""

from trainers.arrays.epoch import train_epochs
from trainers.arrays.network import array_problem
from trainers.arrays.trials import Advance, TrialArray

__all__ = ["Advance", "TrialArray", "array_problem", "train_epochs"]
