from mpo.cli import main

main()
