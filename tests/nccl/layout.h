// NCCL's interface in numbers. Included behind abi.h by the stand-in and behind NVIDIA's nccl.h by
// header.c; worker/src/collective/nccl/library.rs asserts the same numbers.

#define SAME(condition) _Static_assert(condition, #condition)
#define AT(field, offset) SAME(offsetof(ncclConfig_t, field) == (offset))

SAME(sizeof(ncclUniqueId) == 128);
SAME(sizeof(ncclResult_t) == 4);
SAME(sizeof(ncclRedOp_t) == 4);
SAME(sizeof(ncclDataType_t) == 4);
SAME(sizeof(ncclScalarResidence_t) == 4);

SAME(ncclSuccess == 0);
SAME(ncclUnhandledCudaError == 1);
SAME(ncclSystemError == 2);
SAME(ncclInternalError == 3);
SAME(ncclInvalidArgument == 4);
SAME(ncclInvalidUsage == 5);
SAME(ncclRemoteError == 6);
SAME(ncclInProgress == 7);
SAME(ncclSum == 0);
SAME(ncclAvg == 4);
SAME(ncclNumOps == 5);
SAME(ncclFloat32 == 7);
SAME(ncclBfloat16 == 9);
SAME(ncclScalarHostImmediate == 1);

SAME(sizeof(ncclConfig_t) == 80);
AT(size, 0);
AT(magic, 8);
AT(version, 12);
AT(blocking, 16);
AT(cgaClusterSize, 20);
AT(minCTAs, 24);
AT(maxCTAs, 28);
AT(netName, 32);
AT(splitShare, 40);
AT(trafficClass, 44);
AT(commName, 48);
AT(collnetEnable, 56);
AT(CTAPolicy, 60);
AT(shrinkShare, 64);
AT(nvlsCTAs, 68);
AT(nChannelsPerNetPeer, 72);
AT(nvlinkCentricSched, 76);

#define IS(function, ...) SAME(__builtin_types_compatible_p(__typeof__(&function), __VA_ARGS__))

IS(ncclGetVersion, ncclResult_t (*)(int *));
IS(ncclGetUniqueId, ncclResult_t (*)(ncclUniqueId *));
IS(ncclCommInitRankConfig,
   ncclResult_t (*)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *));
IS(ncclCommGetAsyncError, ncclResult_t (*)(ncclComm_t, ncclResult_t *));
IS(ncclCommFinalize, ncclResult_t (*)(ncclComm_t));
IS(ncclCommDestroy, ncclResult_t (*)(ncclComm_t));
IS(ncclCommAbort, ncclResult_t (*)(ncclComm_t));
IS(ncclGetErrorString, const char *(*)(ncclResult_t));
IS(ncclGetLastError, const char *(*)(ncclComm_t));
IS(ncclRedOpCreatePreMulSum,
   ncclResult_t (*)(ncclRedOp_t *, void *, ncclDataType_t, ncclScalarResidence_t, ncclComm_t));
IS(ncclRedOpDestroy, ncclResult_t (*)(ncclRedOp_t, ncclComm_t));
IS(ncclAllReduce, ncclResult_t (*)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t,
                                   ncclComm_t, struct CUstream_st *));
IS(ncclBroadcast, ncclResult_t (*)(const void *, void *, size_t, ncclDataType_t, int, ncclComm_t,
                                   struct CUstream_st *));
IS(ncclGroupStart, ncclResult_t (*)(void));
IS(ncclGroupEnd, ncclResult_t (*)(void));
