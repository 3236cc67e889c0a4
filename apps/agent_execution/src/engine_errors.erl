%% @doc What other parts call an error, in the one shape that the engine records.
-module(engine_errors).

-export([from/1]).
-export([retryable/1]).

%% @doc An error map, or one made of an atom such as `native_down'.
-spec from(term()) -> agent_error:t().
from(#{reason := _, message := _} = Error) -> Error;
from(#{reason := Reason}) when is_atom(Reason) -> agent_error:new(Reason, atom_to_binary(Reason));
from(native_down) -> agent_error:new(native_down, <<"the native runtime is being started again">>);
from(busy) -> agent_error:new(overloaded, <<"the queue is full">>);
from(Other) ->
    %% The kind only: a term may hold what must not be seen.
    Kind = if
        is_atom(Other) -> atom_to_binary(Other);
        is_tuple(Other), is_atom(element(1, Other)) -> atom_to_binary(element(1, Other));
        true -> <<"unknown">>
    end,
    agent_error:new(internal, <<"unexpected failure: ", Kind/binary>>).

%% @doc Whether a new attempt may end better.
-spec retryable(atom()) -> boolean().
retryable(Reason) ->
    lists:member(Reason, [rate_limited, queue_full, overloaded, store_unavailable, native_down, commit_ambiguous, unknown,
                          worker_crashed, worker_protocol_error, worker_hung, worker_shared, node_lost, native_panic,
                          provider_rate_limited, provider_overloaded, provider_unavailable, provider_timeout,
                          provider_stream_cut, provider_bad_response, heartbeat_timeout]).
