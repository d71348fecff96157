from . import diagnostics as diagnostics
from . import plots as plots
from . import theory as theory
from .diagnostics import (
    compare as compare,
)
from .field import (
    Action as Action,
)
from .field import (
    Cumulants as Cumulants,
)
from .field import (
    Deformed as Deformed,
)
from .field import (
    ImportanceWeights as ImportanceWeights,
)
from .field import (
    Moments as Moments,
)
from .field import (
    action as action,
)
from .field import (
    block_cumulants as block_cumulants,
)
from .field import (
    cumulants as cumulants,
)
from .field import (
    deform as deform,
)
from .field import (
    edgeworth_logpdf as edgeworth_logpdf,
)
from .field import (
    edgeworth_marginal as edgeworth_marginal,
)
from .field import (
    edgeworth_pdf as edgeworth_pdf,
)
from .field import (
    edgeworth_report as edgeworth_report,
)
from .field import (
    importance_weights as importance_weights,
)
from .field import (
    log_generating_functional as log_generating_functional,
)
from .field import (
    moments as moments,
)
from .field import (
    running_couplings as running_couplings,
)
from .flow import (
    CriticalScale as CriticalScale,
)
from .flow import (
    Flow as Flow,
)
from .flow import (
    MappedFlow as MappedFlow,
)
from .flow import (
    SampledFlow as SampledFlow,
)
from .flow import (
    StepwiseFlow as StepwiseFlow,
)
from .flow import (
    TemperedFlow as TemperedFlow,
)
from .flow import (
    closed_form_differences as closed_form_differences,
)
from .flow import (
    closed_form_flow as closed_form_flow,
)
from .flow import (
    critical_scale as critical_scale,
)
from .flow import (
    cutoffs as cutoffs,
)
from .flow import (
    pruning_curve as pruning_curve,
)
from .flow import (
    removable_fraction as removable_fraction,
)
from .flow import (
    renormalize as renormalize,
)
from .flow import (
    renormalize_fibre as renormalize_fibre,
)
from .flow import (
    renormalize_stepwise as renormalize_stepwise,
)
from .flow import (
    renormalize_tempered as renormalize_tempered,
)
from .flow import (
    unlearning as unlearning,
)
from .inference import (
    LearningRate as LearningRate,
)
from .inference import (
    early_stopped as early_stopped,
)
from .inference import (
    ensemble as ensemble,
)
from .inference import (
    hmc as hmc,
)
from .inference import (
    laplace as laplace,
)
from .inference import (
    learning_rate as learning_rate,
)
from .inference import (
    map_estimate as map_estimate,
)
from .inference import (
    mclmc as mclmc,
)
from .inference import (
    nuts as nuts,
)
from .inference import (
    pathfinder as pathfinder,
)
from .inference import (
    readout_posterior as readout_posterior,
)
from .inference import (
    sample as sample,
)
from .inference import (
    sghmc as sghmc,
)
from .inference import (
    sgld as sgld,
)
from .inference import (
    split_hmc as split_hmc,
)
from .inference import (
    svi as svi,
)
from .inference import (
    tempered_smc as tempered_smc,
)
from .io import (
    Run as Run,
)
from .io import (
    from_arviz as from_arviz,
)
from .io import (
    from_numpyro as from_numpyro,
)
from .io import (
    load_run as load_run,
)
from .io import (
    to_arviz as to_arviz,
)
from .metric import (
    Metric as Metric,
)
from .metric import (
    fisher as fisher,
)
from .model import (
    Likelihood as Likelihood,
)
from .model import (
    Network as Network,
)
from .model import (
    bernoulli as bernoulli,
)
from .model import (
    beta as beta,
)
from .model import (
    categorical as categorical,
)
from .model import (
    cosnet as cosnet,
)
from .model import (
    gaussian as gaussian,
)
from .model import (
    heteroscedastic as heteroscedastic,
)
from .model import (
    mlp as mlp,
)
from .model import (
    multivariate_gaussian as multivariate_gaussian,
)
from .model import (
    negative_binomial as negative_binomial,
)
from .model import (
    ordinal as ordinal,
)
from .model import (
    poisson as poisson,
)
from .model import (
    student_t as student_t,
)
from .posterior import (
    Posterior as Posterior,
)
from .posterior import (
    predict as predict,
)
from .posterior import (
    prior as prior,
)
from .runs import (
    Board as Board,
)
from .runs import (
    Data as Data,
)
from .runs import (
    Encoder as Encoder,
)
from .runs import (
    Experiment as Experiment,
)
from .runs import (
    Predictive as Predictive,
)
from .runs import (
    Table as Table,
)
from .runs import (
    board as board,
)
from .runs import (
    load_experiment as load_experiment,
)
from .runs import (
    load_table as load_table,
)
from .runs import (
    report as report,
)
from .runs import (
    table_experiment as table_experiment,
)
from .runs import (
    table_network as table_network,
)
from .runs import (
    verdicts as verdicts,
)

__version__: str
