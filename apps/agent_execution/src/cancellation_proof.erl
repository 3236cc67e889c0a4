%% @doc The proofs of several process trees as one: it claims no more than the weakest of them.
-module(cancellation_proof).

-export([all/1]).

%% @doc One proof of all; of none, that none was needed.
-spec all([map()]) -> map().
all(Proofs) ->
    case [P || P = #{witness := Witness} <- Proofs, Witness =/= none_needed] of
        [] -> execution_core:no_proof_needed();
        [First | Rest] -> lists:foldl(fun both/2, First, Rest)
    end.

-spec both(map(), map()) -> map().
both(A, B) ->
    Get = fun(Key, P, Default) -> maps:get(Key, P, Default) end,
    #{witness => weaker(maps:get(witness, A), maps:get(witness, B)),
      host_pid => Get(host_pid, B, 0),
      signals => Get(signals, B, []) ++ Get(signals, A, []),
      confirmed_dead => Get(confirmed_dead, A, false) andalso Get(confirmed_dead, B, false),
      survivors => Get(survivors, B, []) ++ Get(survivors, A, []),
      fenced_at_ms => max(Get(fenced_at_ms, A, 0), Get(fenced_at_ms, B, 0)),
      duration_us => max(Get(duration_us, A, 0), Get(duration_us, B, 0))}.

%% The kernel's namespace knows of every process, a walk over descendants of those it found.
-spec weaker(atom(), atom()) -> atom().
weaker(A, B) ->
    hd([W || W <- [unconfirmed, descendants, namespace, none_needed], W =:= A orelse W =:= B]).
