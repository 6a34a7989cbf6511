module native-cluster/pause

go 1.21
