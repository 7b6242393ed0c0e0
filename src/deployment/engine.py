"""Translating a test set with CTranslate2.

The engine stands in for fairseq's ``SequenceGenerator``: batches, output lines and
BLEU stay as they are. Options that would not give fairseq's hypotheses are refused.
"""

import logging
import tempfile
from typing import List, Optional

import torch

from ..checks.ctranslate2_package import require_ctranslate2
from ..errors import UserError
from .comparison import check_same, load_translator, random_pairs
from .export import export
from .generator import CTranslate2Generator
from .model import QUANTIZATIONS, weights_digest

logger = logging.getLogger(__name__)

ENGINES = ("pytorch", "ctranslate2")


def add_options(parser) -> None:
    """``--engine`` and what belongs to it."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="pytorch",
        help="what computes the translations (default: pytorch); ctranslate2 runs on the "
        "CPU, prints no P- lines and takes, of the search options, --beam, --lenpen, "
        "--unnormalized, --max-len-a, --max-len-b, --min-len up to 1, --prefix-size, "
        "--no-repeat-ngram-size, --sampling with its options and --temperature, "
        "--replace-unk [FILE] (the unknown word's source word that gets the most attention, "
        "or what FILE says in a line 'source target'), and --nbest, of which all but the "
        "best can differ from fairseq's",
    )
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="with --engine ctranslate2: how weights are stored (default: float32)",
    )
    group.add_argument(
        "--ctranslate2-model",
        metavar="DIR",
        help="with --engine ctranslate2: folder that export.py made of --path (default: "
        "export to a temporary one)",
    )
    group.add_argument(
        "--ctranslate2-vocabulary-map",
        choices=("auto", "off"),
        help="with --ctranslate2-model: auto (default) scores only the candidates of the "
        "folder's vocabulary map where it has one, see export.py --vocabulary-map; scores "
        "(H-, D- lines) are of probabilities among the candidates of the sentences "
        "translated together, so a little higher; off scores all types",
    )
    group.add_argument(
        "--cpu-threads",
        type=int,
        metavar="N",
        help="threads of either engine (default: all cores, or OMP_NUM_THREADS)",
    )


def prepare(args, cfg, task, model, skipped: List[int]) -> Optional[CTranslate2Generator]:
    """The generator that the options ask for, compared with the model; or None.

    Args:
        model: that of ``--path``, in PyTorch.
        skipped: numbers of the sentences that are left out.

    Raises:
        UserError: the model can't be exported, or ``--ctranslate2-model`` is of another.
    """
    if args.cpu_threads is not None:
        torch.set_num_threads(args.cpu_threads)
    if args.engine != "ctranslate2":
        return None
    if cfg.common.seed is not None and not cfg.generation.no_seed_provided:
        require_ctranslate2("--engine ctranslate2").set_random_seed(cfg.common.seed)
    dictionaries = task.source_dictionary, task.target_dictionary
    folder, origin = args.ctranslate2_model, f"--ctranslate2-model {args.ctranslate2_model}"
    with tempfile.TemporaryDirectory(prefix="srp-ctranslate2-") as temporary:
        if folder is None:
            folder, origin = temporary, f"--path {cfg.common_eval.path}"
            export(model, dictionaries, folder, args.quantization or "float32", origin)
        generator = CTranslate2Generator(
            folder,
            dictionaries,
            cfg.generation,
            model.decoder.max_positions(),
            origin,
            use_map=args.ctranslate2_vocabulary_map != "off",
        )
    if args.ctranslate2_model is not None:
        exported, present = generator.config.get("weights_sha256"), weights_digest(model)
        # quantized, the model of another epoch differs no more than its own may
        if None not in (exported, present) and exported != present:
            raise UserError(
                f"{origin}: is not of {cfg.common_eval.path}: it was exported from other "
                "weights; export anew"
            )
        limits = [
            min(side.max_positions(), generator.config.get(f"max_{name}_positions", 1024))
            for name, side in (("source", model.encoder), ("target", model.decoder))
        ]
        check_same(
            load_translator(folder, origin),
            generator.quantization,
            model,
            dictionaries,
            random_pairs(*dictionaries, limits),
            "random sentences",
            f"{origin}: is not of {cfg.common_eval.path}",
        )
    dataset = task.dataset(cfg.dataset.gen_subset)
    generator.check_lengths(dataset, skipped)
    logger.info(
        f"translating with CTranslate2 on the CPU, {torch.get_num_threads()} threads; "
        "token scores (P- lines) are left out"
    )
    if generator.map is not None:
        size = generator.map.mean_size([x.tolist() for x in dataset.src])
        logger.info(
            f"with the vocabulary map of {folder}: a sentence has {size:.0f} candidates on "
            f"average, of {len(task.target_dictionary)} types; scores are among them"
        )
    return generator
