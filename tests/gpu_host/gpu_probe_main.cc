// The child that ProbeInChild starts, for tests.
#include "gpu/engine/gpu_probe.h"

int main(int argc, char** argv) { return argc == 3 ? modelstore::ProbeMain(argv[1], argv[2]) : 2; }
