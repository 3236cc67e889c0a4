%% @doc Names as text: configuration and shell may say atoms, lists or binaries, the engine says binaries.
-module(engine_names).

-export([binary/1]).
-export([lookup/3]).
-export([environment/1]).

%% @doc A name as binary.
-spec binary(atom() | iodata()) -> binary().
binary(Name) when is_binary(Name) -> Name;
binary(Name) when is_atom(Name) -> atom_to_binary(Name);
binary(Name) when is_list(Name) -> unicode:characters_to_binary(Name).

%% @doc A key of a map that may be written as atom or binary.
-spec lookup(atom(), map(), term()) -> term().
lookup(Key, Map, Default) ->
    case Map of
        #{Key := Value} -> Value;
        #{} -> maps:get(atom_to_binary(Key), Map, Default)
    end.

%% @doc The environment that a framework runs in: every `custom:NAME' is of `custom', LangGraph of LangChain's.
-spec environment(binary()) -> binary().
environment(<<"custom:", _/binary>>) -> <<"custom">>;
environment(<<"langgraph">>) -> <<"langchain">>;
environment(Framework) -> Framework.
