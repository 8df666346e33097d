"""What Slurm knows of jobs, patiently: nothing here raises, or calls a job over, because Slurm does not answer.

    look                                 one squeue and one sacct at most, for any number of jobs   -> Answer
    gone                                 squeue answered, and does not have it as active: the one way to call a job over
    reason_words, cause, cause_words     why it waits, why it ended, and what to do
    words_of                             what scontrol and sacct say, word for word, for a person
    cancel, requeue                      the two orders that are given
    submitted, unavailable, submit_env, rejection   what goes round sbatch, which submitit calls

Standard library only.
"""

from hpcai.scheduler.ask import GONE as GONE
from hpcai.scheduler.ask import PATIENCE_S as PATIENCE_S
from hpcai.scheduler.ask import POLL_S as POLL_S
from hpcai.scheduler.ask import Answer as Answer
from hpcai.scheduler.ask import Job as Job
from hpcai.scheduler.ask import cancel as cancel
from hpcai.scheduler.ask import gone as gone
from hpcai.scheduler.ask import look as look
from hpcai.scheduler.ask import named as named
from hpcai.scheduler.ask import requeue as requeue
from hpcai.scheduler.ask import submit_env as submit_env
from hpcai.scheduler.ask import submitted as submitted
from hpcai.scheduler.ask import unavailable as unavailable
from hpcai.scheduler.ask import words_of as words_of
from hpcai.scheduler.words import Cause as Cause
from hpcai.scheduler.words import cause as cause
from hpcai.scheduler.words import cause_words as cause_words
from hpcai.scheduler.words import reason_words as reason_words
from hpcai.scheduler.words import rejection as rejection
