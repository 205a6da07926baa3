from sheaf_operator.main import main

main()
