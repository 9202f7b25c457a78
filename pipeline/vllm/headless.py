"""Run by the server environment's Python: vLLM's `serve` as a node that answers no requests.

vLLM's own command line asks for the version of a distribution called vllm, which the build for processors is not.
"""


def main() -> None:
    """Serve with the arguments of the command line."""
    from vllm.entrypoints.cli.serve import cmd_init  # type: ignore[import-not-found]  # lives in the server's environment
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]  # as above

    (serve,) = cmd_init()
    arguments = serve.subparser_init(FlexibleArgumentParser().add_subparsers()).parse_args()
    serve.validate(arguments)
    serve.cmd(arguments)


if __name__ == "__main__":
    main()
